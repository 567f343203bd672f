//: a block with tabs
func area(radius float64) float64 {
	‸
}
//> square := radius * radius
//> 	return math.Pi * square
//> }
//= square := radius * radius
//= 	return math.Pi * square

//: an error is returned
	value, err := read(path)
	if err != nil {‸
//> 
//> 		return nil, err
//> 	}
//> 	return value, nil
//= 
//= 		return nil, err
//= 	}

//: spaces in a document of tabs
	a := 1
	if a > 0 {‸
//> 
//>         b()
//>         c()
//> 	}
//! wrong indentation

//: a call
	fmt.Println(‸)
//> "area", radius)
//= "area", radius

//: a composite literal
	return Circle{‸}
//> Radius: radius}
//= Radius: radius
