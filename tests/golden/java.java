//: a method
class Circle {
    double area() {‸
//> 
//>         double square = radius * radius;
//>         return Math.PI * square;
//>     }
//> 
//>     double more() {
//= 
//=         double square = radius * radius;
//=         return Math.PI * square;
//=     }

//: a line up to its semicolon
        List<String> names = ‸
//> new ArrayList<>();
//>         names.add("a");
//= new ArrayList<>();

//: a semicolon stands there already
        return ‸;
//> Math.PI * radius;
//= Math.PI * radius

//: a getter that is there already
    int getRadius() {
        ‸
    }
//> return radius;
//>     }
//= return radius;

//: parameters over several lines
class Circle {
    Circle(double radius,
           String unit) {‸
//> 
//>         this.radius = radius;
//>         this.unit = unit;
//>     }
//> 
//>     double area() {
//= 
//=         this.radius = radius;
//=         this.unit = unit;
//=     }

//: the default of a switch
class Circle {
    double area() {
        switch (kind) {
            case 1: return 2;
            default:‸
        }
    }
//> 
//>                 log(kind);
//>                 return 0;
//>         }
//= 
//=                 log(kind);
//=                 return 0;

//: a switch with its cases
class Circle {
    double area() {
        switch (kind) {‸
//> 
//>         case 1:
//>             return 2;
//>         default:
//>             return 0;
//>         }
//>     }
//= 
//=         case 1:
//=             return 2;
//=         default:
//=             return 0;
//=         }

//: the other branch is another completion
class Circle {
    void check() {
        if (radius < 0) {‸
//> 
//>             radius = 0;
//>         } else {
//>             radius = 1;
//= 
//=             radius = 0;
//=         }

//: a text that is not indented ends no block
class Circle {
    String help() {‸
//> 
//>         String text = """
//> area RADIUS
//> """;
//>         return text;
//>     }
//> }
//= 
//=         String text = """
//= area RADIUS
//= """;
//=         return text;
//=     }

//: a call over several lines
class Circle {
    void check() {
        assertEquals(‸
//> 
//>             Math.PI,
//>             circle.area());
//>         assertTrue(true);
//= 
//=             Math.PI,
//=             circle.area());

//: an array over several lines
class Circle {
    int[] sizes = {‸
//> 
//>         1, 2,
//>         3,
//>     };
//>     int more;
//= 
//=         1, 2,
//=         3,
//=     };

//: no block in a comment
class Circle {
    /**
     * What it covers, as {‸
//> @code double}.
//>      */
//> double area() {
//= @code double}.

//: no block in a string
class Circle {
    String json = "{‸
//> }";
//>     int more;
//= }";

//: behind a comment the body is missing
class Circle {
    double area() {
        // of a disk
        ‸
    }
}
//> double square = radius * radius;
//>         return Math.PI * square;
//>     }
//= double square = radius * radius;
//=         return Math.PI * square;
